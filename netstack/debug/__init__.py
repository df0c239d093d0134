"""The stack as a microscope: captures read, replayed, compared and told. Optional at run time; nothing here is hot."""
