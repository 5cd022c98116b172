"""Acting in environments: rollouts of trained policies, and a linear teacher."""
