"""One module or package for each thing outside; none of them knows another."""
