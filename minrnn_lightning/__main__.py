"""``python -m minrnn_lightning`` is ``minrnn``."""

from minrnn_lightning.commands.main import main

main()
