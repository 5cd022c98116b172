"""Speed, memory and accuracy beside named baselines, all measured in one run: ``minrnn benchmark``."""
