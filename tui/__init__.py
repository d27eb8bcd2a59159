"""What only one person sees: the terminal client."""
