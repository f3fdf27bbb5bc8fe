"""One file an algorithm: the paper's losses and one readable step function; one shared loop."""
