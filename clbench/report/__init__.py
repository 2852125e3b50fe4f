"""Records for people: tables on the terminal, later pages and pictures."""
