"""One module per command: NAME, HELP, add_arguments(parser), run(arguments) -> exit code or None."""
