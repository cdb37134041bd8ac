"""The command line of the code behind the paper, as a front end of the same config."""
