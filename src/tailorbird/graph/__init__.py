"""Networks as graphs: trace, find blocks, cut, stitch, prune."""
