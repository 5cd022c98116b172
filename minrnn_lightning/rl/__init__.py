"""Acting in environments: rollouts of trained policies, and a linear policy found by random search."""
