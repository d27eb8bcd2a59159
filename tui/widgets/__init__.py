"""The parts of the screen. Each gets attributes from above and sends messages up; none knows the client."""
