"""What lies in foreign files: their places, their text, their pictures; what is damaged or leads elsewhere is refused."""
