"""The application by its import path, as a RayService has it: another encoder without a break."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.serve.running import TOY, Load, wait_until_ready
from tests.serve_app.serving import TOKEN
from tests.servers.ray_head import ray_head
from tests.servers.s3 import free_port


def deploy(config: Path, env: dict[str, str], port: int, **application: Any) -> None:
    """`serve deploy`, with what is said of the application."""
    args = {
        "models": [TOY],
        "ingress_cpus": 0.5,
        "tokens_file": str(config.parent / "tokens"),
    }
    said = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {"name": "historay", "import_path": "serve_app.app:app", "args": args, **application}
        ],
    }
    config.write_text(yaml.safe_dump(said))
    done = subprocess.run(
        ["serve", "deploy", str(config)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_user_config_changes_the_encoder_without_a_break(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    config, port = tmp_path / "service.yaml", free_port()
    with ray_head(tmp_path / "head.log", cpus=3, jobs=True) as head:
        env = head.env
        deploy(config, env, port)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, lambda: True)
        assert httpx2.get(f"{url}/info").status_code == 401
        with Load(url) as load:
            for precision in ("fp32", "bf16", "fp32", "bf16"):
                load.wait_for(10)
                before = dict(load.encoders)
                user_config = {**TOY["encoder"], "precision": precision}
                deployment = {"name": "encoder-toy", "user_config": user_config}
                deploy(config, env, port, deployments=[deployment])
                give_up_at = time.monotonic() + 60
                while time.monotonic() < give_up_at:
                    grown = [f for f, n in load.encoders.items() if n > before.get(f, 0) + 10]
                    if len(load.encoders) == 2 and len(grown) == 2:
                        break
                    time.sleep(0.2)
        assert set(load.outcomes) == {"200"}, load.outcomes
        assert len(load.encoders) == 2
