"""The ``minrnn`` command: one module per subcommand; ``main`` dispatches to them."""
