"""Mixed precision: how many bits each value gets, under a bound on their average."""
