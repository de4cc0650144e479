"""Services of the process for every room: imports of compiled modules, deadlines, descriptors, histograms."""
