"""How long a bundle takes on devices that are not here."""
