"""What any room may use of the process: imports of compiled modules, deadlines, descriptors, histograms."""
