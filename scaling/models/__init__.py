"""The decoder, its layers, and the shapes that papers published."""
