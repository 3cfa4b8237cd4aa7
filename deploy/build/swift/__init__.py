"""What Apple's Swift client needs beside the programs."""
