"""Images and label sets: reading, finding and writing files; names and colours of classes."""
