"""What holds for all tests."""

import signal

import torch

# Some tests ask for equal bits, and how several threads share a matrix product may change the last.
torch.set_num_threads(1)

# A shell that starts the gate in the background has it ignore ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
