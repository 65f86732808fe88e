"""Work on one's own images and data outside a run: insert, compare and tune drivers, review masks, export, pretrain."""
