"""4, transfer: Fast R-CNN on PASCAL VOC 2007, with the trained nets as its trunk."""
