"""What the commands do, one module for each kind; imported only when a command runs."""
