"""Images and datasets: reading files, transforms, image folders."""
