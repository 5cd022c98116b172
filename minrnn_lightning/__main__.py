"""``python -m minrnn_lightning`` is ``minrnn``."""

from minrnn_lightning.cli import main

main()
