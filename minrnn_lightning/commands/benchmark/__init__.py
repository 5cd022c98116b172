"""Speed, memory and accuracy compared with named baselines, all measured in one run: ``minrnn benchmark``."""
