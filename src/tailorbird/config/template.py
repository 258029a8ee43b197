"""The job that ``tailorbird init`` prints and ``tailorbird demo`` runs."""

TEMPLATE = """\
# A Tailorbird job. As it stands it runs on scikit-learn's digits, without any download:
#
#   tailorbird init > job.yaml
#   tailorbird run job.yaml        (run again: continues where it was)
#
# Relative paths start from this file's folder; modules beside this file can be imported.
# Unknown keys are errors. Change what you need; what is left out takes its default.

# The trained network that students are made from.
#   model: timm:NAME, torchvision:NAME, or package.module:factory
#   arguments: keyword arguments, such as {pretrained: true}
#   checkpoint: weights as .safetensors, or a torch file that holds nothing but tensors
#   num_classes: outputs of the head, where the constructor takes that argument
#   train: no checkpoint yet: train it on the images below first (keys as in retrain)
teacher:
  model: tailorbird.demo:digits_net
  arguments: {width: 32, depth: 3}
  train: {epochs: 12}

# Pretrained networks that blocks are taken from, any number, also none. Keys as in teacher.
donors:
  narrow:
    model: tailorbird.demo:narrow_net
    arguments: {width: 24, depth: 2}
    train: {epochs: 12}

# Images. Choices are made on a validation split taken from the training images; the test split
# is read once, at the end. Without labels, accuracy is agreement with the teacher.
#   kind: digits
#   kind: cifar10 or cifar100, with root: FOLDER, download: false
#   kind: folder, with root: FOLDER (CLASS/*.png, or train/CLASS/* and test/CLASS/*)
#   kind: parquet, with files: [data/train-*.parquet], test: [data/test-*.parquet]
#   kind: package.module:factory, with arguments: {}; returns torch data sets (train, test)
# Most kinds also take: image_size, normalisation: imagenet or {mean: [...], std: [...]},
# crop_padding, flip, skip_corrupt.
data:
  kind: digits
  validation: 0.15

# One student each. limits: latency, params, size, macs, peak_memory as a share of the teacher's
# ("0.5x"), or latency_ms, params, size_mb, macs, peak_memory_mb as a number; several at once.
targets:
  - name: server
    device: {kind: onnxruntime, provider: CPUExecutionProvider, threads: 1}
    limits: {latency: 0.75x}
  - name: edge
    limits: {latency: 0.5x}
  - name: tiny
    limits: {latency: 0.35x}

# The model house: how many alternatives, and how long they are distilled.
house:
  teacher_blocks: 30
  donor_blocks: 20
  pruned: 30
  epochs: 3
  # minutes: 60         # stop distilling after this time
  # width_multiple: 8   # pruned widths are multiples of this
  # leaves: []          # module paths that tracing must not look into

# How students are retrained.
retrain:
  epochs: 10
  # minutes: 120
  # learning_rate: 0.05
  # precision: auto     # or float32, bfloat16

rounds: 3       # searches and retrainings per target, at most
candidates: 4   # selections measured whole in each search
# export: {opset: 20, dynamic_batch: true}   # by default: the exporter's opset, batch 1
seed: 0
run: runs/digits
"""
