from delving.cli import main

main()
