//! A private `PgBouncer`.

use std::{fs, iter, net::TcpStream, process::Command};

use crate::{
    free_port,
    postgres::{Postgres, as_user},
    supervised::Supervised,
    until,
};

/// A pooler in front of a server, with its own port. Dropping it stops it.
pub struct PgBouncer {
    port: u16,
    role: String,
    _process: Supervised,
}

impl PgBouncer {
    /// Starts one for a role, with further lines in its configuration, such as `pool_mode = session`.
    pub fn start(server: &Postgres, role: &str, configuration: &str) -> Self {
        let port = free_port();
        let dir = server.file(&format!("pgbouncer-{port}"));
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
        let pooler = as_user("pgbouncer");
        let args = iter::once(pooler.get_program())
            .chain(pooler.get_args())
            .chain([file.as_os_str()]);
        let process = Supervised::start(Command::new("env").current_dir(&dir), args, "");
        until("the pooler listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            port,
            role: role.to_owned(),
            _process: process,
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
