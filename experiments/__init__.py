"""The experiments that come with openbook, one YAML file each."""
