"""Images from files: folders, arrays and published data sets; how they are decoded, cropped and indexed."""
