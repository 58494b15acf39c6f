"""`llm-orchestration`. It starts here, and not in `core`, so that a `core` of the user's in front of ours is
explained."""


def main() -> None:
    from litellm_orchestration._namespace import verify_our_packages

    verify_our_packages()
    from core.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
