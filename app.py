"""Starts the web page; takes the options of `dreamsa web`."""

import sys

from dreamsa.cli import main

if __name__ == "__main__":
    main(["web", *sys.argv[1:]])
