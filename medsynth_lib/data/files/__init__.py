"""Files of images and tables: NIfTI, manifests, layouts of published data sets, and the selection of scans."""
