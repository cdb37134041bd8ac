"""Charts as inline SVG, one kind a file. matplotlib draws; `svg.py` makes its drawing part of the page."""
