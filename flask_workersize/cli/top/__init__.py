"""The page of a server's capacity, in the terminal."""
