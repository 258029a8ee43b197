"""The job that ``tailorbird supernet init`` prints."""

TEMPLATE = """\
# A supernet's job: one network trained once, from which subnets for all targets are taken. As it
# stands it trains on scikit-learn's digits in about a minute, without any download:
#
#   tailorbird supernet init > job.yaml
#   tailorbird supernet train job.yaml        (run again: continues where it was)
#   tailorbird supernet evaluate runs/digits-supernet
#
# Relative paths start from this file's folder; modules beside this file can be imported.
# Unknown keys are errors. Change what you need; what is left out takes its default.

# The space that subnets come from; `tailorbird spaces` lists them. Those called cifar-... are for
# images of about 32 pixels. Subnets also differ in resolution where several are given.
space:
  name: cifar-compofa-mbv3-s2-w0.25
  resolutions: [32]

# Images with labels, keys as in `tailorbird init`: digits, cifar10, cifar100, folder, parquet, or
# package.module:factory. Subnets are judged on a validation split taken from the training images.
data:
  kind: digits
  image_size: 32
  crop_padding: 2
  validation: 0.15

# How it is trained: deps, progressive-shrinking, bignas or compofa, each with settings of its own.
#   deps: epochs, learning_rate, delay, ramp_epochs, warm_up_full, ramp, distil, reorder, networks
#   progressive-shrinking, compofa: epochs (of all phases), learning_rate (the highest),
#     phases: {NAME: {epochs, learning_rate, warmup_epochs, networks}, or null to leave it out}
#   bignas: epochs, learning_rate, tail, tail_from, networks, zero_gains
# Any of them: fixed or label_smoothing, lr_warmup_epochs or distil; a wrong key lists the known.
scheme:
  kind: deps
  epochs: 12
  learning_rate: 0.1
  ramp_epochs: 2

# Which subnets a step trains: uniform, sandwich, macs-balanced or sandwich-macs-balanced; left
# out, what the scheme's paper has.
# sampler: sandwich

recipe:
  batch_size: 64
  # weight_decay: 3e-5
  # accumulate: 2       # parts of a batch, to save memory
  # ema: 0.999          # keep the running average of the weights
  # precision: auto     # or float32, bfloat16
  # mixup: 0.0
  # cutmix: 0.0

# dropout: 0.0
# start: ofa.pth        # weights to begin with: an official checkpoint or safetensors
# new_classifier: true  # of start, take all but the classifier: for images of other classes
# validate_epochs: 1    # null for never
# save_steps: 500       # steps between checkpoints; an epoch by default
# tensorboard: true     # needs: pip install "tailorbird[tensorboard]"
seed: 0
run: runs/digits-supernet
"""
