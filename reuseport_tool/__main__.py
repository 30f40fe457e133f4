from reuseport_tool.cli.main import main

if __name__ == "__main__":
    main()
