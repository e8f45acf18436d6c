"""aimemo beside the floor and its peers, measured in one interleaved run."""
