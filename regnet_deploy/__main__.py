"""Run the command line as ``python -m regnet_deploy``."""

from regnet_deploy.cli.main import run

if __name__ == "__main__":
    run()
