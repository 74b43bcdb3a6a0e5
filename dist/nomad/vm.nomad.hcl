# A piton VM under Nomad. NOT RUN by piton's developers: read it before you use it.
# The client needs the raw_exec driver, piton, and access to /dev/kvm; the VM is in the volume of the host.
job "web" {
  type = "service"

  group "vm" {
    count = 1

    # Nomad may start it elsewhere only where the same storage is: pin it, or share the storage and fence.
    constraint {
      attribute = "${attr.unique.hostname}"
      value     = "node1"
    }

    restart {
      attempts = 3
      interval = "10m"
      delay    = "10s"
      mode     = "fail"
    }

    task "piton" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      # Longer than --stop-timeout: the guest shuts down in this time.
      kill_timeout = "90s"

      env {
        PITON_HOME       = "/var/lib/piton"
        PITON_LOG_FORMAT = "json"
      }

      config {
        command = "/usr/bin/piton"
        args    = ["start", "--attach", "--stop-timeout", "60", "web"]
      }

      resources {
        cpu    = 2000
        memory = 2304 # The guest's memory, and 256 MiB.
      }
    }

    service {
      name     = "web-vm"
      provider = "nomad"
      task     = "piton"

      check {
        type     = "script"
        task     = "piton"
        command  = "/usr/bin/piton"
        args     = ["wait", "web", "--for", "running", "--timeout", "5"]
        interval = "15s"
        timeout  = "10s"
      }
    }
  }
}
