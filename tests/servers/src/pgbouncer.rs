//! A private `PgBouncer`.

use std::{fs, process::Command};

use crate::{
    postgres::{Postgres, as_user},
    redis::{free_port, until},
    supervised::Supervised,
};

/// A pooler in front of a server, with its own port. Dropping it stops it.
pub struct PgBouncer {
    port: u16,
    role: String,
    process: Option<Supervised>,
}

impl PgBouncer {
    /// Starts one for a role, with further lines in its configuration, such as `pool_mode = session`.
    pub fn start(server: &Postgres, role: &str, configuration: &str) -> Self {
        let dir = server.file(&format!("pgbouncer-{}", free_port()));
        let port = free_port();
        fs::create_dir(&dir).expect("a folder");
        let users = dir.join("users");
        fs::write(&users, format!("\"{role}\" \"\"\n")).expect("a file");
        let file = dir.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\nmax_client_conn = 200\ndefault_pool_size = 50\n\
             {configuration}\n",
            server.port(),
            users.display()
        );
        fs::write(&file, text).expect("a file");
        let mut command = Command::new("env");
        command.current_dir(&dir);
        let pooler = as_user("pgbouncer");
        let program = std::iter::once(pooler.get_program()).chain(pooler.get_args());
        let mut args: Vec<_> = program
            .map(|part| part.to_str().expect("UTF-8").to_owned())
            .collect();
        args.push(file.to_str().expect("UTF-8").to_owned());
        let process = Some(Supervised::start(&mut command, &args, ""));
        until("the pooler listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            port,
            role: role.to_owned(),
            process,
        }
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://{}@127.0.0.1:{}/{database}",
            self.role, self.port
        )
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}
