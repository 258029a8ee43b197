"""What holds for all tests."""

import signal

# A shell that starts the gate in the background has it ignore ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
