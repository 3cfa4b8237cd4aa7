"""How weights are stored: schemes and codecs. The lowest room of the house; it imports none of the others."""
