"""What every test stands on: output as wide as on a wide terminal, whatever pytest was started from."""

import os

# Read by rich when its consoles are made, so before anything of cli is imported.
os.environ["COLUMNS"] = "160"
