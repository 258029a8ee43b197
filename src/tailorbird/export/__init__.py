"""ONNX files, proof that they equal the network, bundles that rebuild it."""
