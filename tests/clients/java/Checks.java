import java.io.StringReader;
import java.io.StringWriter;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.SQLTimeoutException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Timestamp;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.PGStatement;
import org.postgresql.copy.CopyManager;

/** One check by name: connects to the JDBC URL in JDBC_URL and prints its findings, one a line. The test judges them. */
public final class Checks {
    private static final String URL = System.getenv("JDBC_URL");

    private static Connection connect(String... options) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv().getOrDefault("PGPASSWORD", ""));
        for (int i = 0; i < options.length; i += 2) {
            properties.setProperty(options[i], options[i + 1]);
        }
        return DriverManager.getConnection(URL, properties);
    }

    private static void say(Object... parts) {
        StringBuilder line = new StringBuilder();
        for (Object part : parts) {
            line.append(line.length() == 0 ? "" : " ").append(part);
        }
        System.out.println(line);
    }

    private static String one(Connection c, String sql) throws SQLException {
        try (Statement s = c.createStatement(); ResultSet r = s.executeQuery(sql)) {
            r.next();
            return r.getString(1);
        }
    }

    private static void run(Connection c, String sql) throws SQLException {
        try (Statement s = c.createStatement()) {
            s.execute(sql);
        }
    }

    private interface Work {
        void run() throws Exception;
    }

    private static String stateOf(Work work) throws Exception {
        try {
            work.run();
            return "none";
        } catch (SQLException e) {
            return e.getSQLState();
        }
    }

    static void version() throws Exception {
        say(org.postgresql.util.DriverInfo.DRIVER_VERSION);
    }

    static void values() throws Exception {
        try (Connection c = connect();
                PreparedStatement p = c.prepareStatement("select ?::int8, ?::text, ?::numeric, ?::bool, ?::bytea, ?::int[], ?::timestamptz = 'epoch'")) {
            for (int round = 0; round < 8; round++) {
                p.setLong(1, Long.MIN_VALUE + round);
                p.setString(2, "\u00e4\u4e16");
                p.setBigDecimal(3, new java.math.BigDecimal("12345.6700"));
                p.setBoolean(4, true);
                p.setBytes(5, new byte[] {0, -1});
                p.setArray(6, c.createArrayOf("int4", new Integer[] {1, null, 3}));
                p.setTimestamp(7, new Timestamp(0));
                try (ResultSet r = p.executeQuery()) {
                    r.next();
                    say(r.getLong(1) - Long.MIN_VALUE, r.getString(2), r.getBigDecimal(3), r.getBoolean(4),
                            Arrays.toString(r.getBytes(5)), Arrays.toString((Object[]) r.getArray(6).getArray()), r.getBoolean(7));
                }
            }
        }
    }

    /** Unnamed until the fifth execution, named from then on; several statements of several connections in turn. */
    static void threshold() throws Exception {
        List<Connection> connections = new ArrayList<>();
        List<PreparedStatement> statements = new ArrayList<>();
        for (int n = 0; n < 4; n++) {
            Connection c = connect("prepareThreshold", "3");
            connections.add(c);
            statements.add(c.prepareStatement("select " + n + " * 1000 + ?"));
        }
        int wrong = 0;
        for (int step = 0; step < 12; step++) {
            for (int n = 0; n < 4; n++) {
                PreparedStatement p = statements.get(n);
                p.setInt(1, step);
                try (ResultSet r = p.executeQuery()) {
                    r.next();
                    wrong += r.getInt(1) == n * 1000 + step ? 0 : 1;
                }
            }
        }
        say(wrong, statements.get(0).unwrap(PGStatement.class).isUseServerPrepare());
        for (Connection c : connections) {
            c.close();
        }
    }

    /** More statements than the driver keeps: it closes the oldest on the server. */
    static void eviction() throws Exception {
        try (Connection c = connect("prepareThreshold", "1", "preparedStatementCacheQueries", "5")) {
            int wrong = 0;
            for (int round = 0; round < 3; round++) {
                for (int n = 0; n < 20; n++) {
                    try (PreparedStatement p = c.prepareStatement("select ? + " + n)) {
                        p.setInt(1, round);
                        try (ResultSet r = p.executeQuery()) {
                            r.next();
                            wrong += r.getInt(1) == round + n ? 0 : 1;
                        }
                    }
                }
            }
            say(wrong, one(c, "select count(*) from pg_prepared_statements"));
        }
    }

    static void batch() throws Exception {
        for (String rewrite : new String[] {"false", "true"}) {
            try (Connection c = connect("reWriteBatchedInserts", rewrite)) {
                run(c, "drop table if exists batched; create table batched (id serial primary key, a int unique)");
                c.setAutoCommit(false);
                try (PreparedStatement p = c.prepareStatement("insert into batched (a) values (?)", Statement.RETURN_GENERATED_KEYS)) {
                    for (int n = 0; n < 1000; n++) {
                        p.setInt(1, n);
                        p.addBatch();
                    }
                    int[] counts = p.executeBatch();
                    int keys = 0;
                    try (ResultSet r = p.getGeneratedKeys()) {
                        while (r.next()) {
                            keys++;
                        }
                    }
                    c.commit();
                    say(counts.length, keys, one(c, "select count(*) from batched"));
                    for (int n = 2000; n > 990; n--) {
                        p.setInt(1, n);
                        p.addBatch();
                    }
                    try {
                        p.executeBatch();
                        say("no error");
                    } catch (BatchUpdateException e) {
                        say(e.getSQLState());
                    }
                    c.rollback();
                    say(one(c, "select count(*) from batched"));
                }
                c.commit();
            }
        }
    }

    static void cursor() throws Exception {
        try (Connection c = connect()) {
            c.setAutoCommit(false);
            try (PreparedStatement p = c.prepareStatement("select n from generate_series(1, ?) n")) {
                p.setFetchSize(100);
                for (int round = 0; round < 7; round++) {
                    p.setInt(1, 1050);
                    long sum = 0;
                    try (ResultSet r = p.executeQuery()) {
                        while (r.next()) {
                            sum += r.getInt(1);
                        }
                    }
                    say(sum);
                }
                try (ResultSet r = p.executeQuery()) {
                    r.next();
                }
            }
            c.commit();
            say(one(c, "select 'alive'"));
        }
    }

    static void copy() throws Exception {
        StringBuilder rows = new StringBuilder();
        for (int n = 0; n < 20000; n++) {
            rows.append(n).append("\tzeile \u00e4 ").append(n).append('\n');
        }
        try (Connection c = connect()) {
            run(c, "drop table if exists jdbc_copied; create table jdbc_copied (a int, b text)");
            CopyManager manager = c.unwrap(PGConnection.class).getCopyAPI();
            say(manager.copyIn("copy jdbc_copied from stdin", new StringReader(rows.toString())));
            StringWriter back = new StringWriter();
            say(manager.copyOut("copy (select * from jdbc_copied order by a) to stdout", back));
            say(back.toString().contentEquals(rows));
            say(stateOf(() -> manager.copyIn("copy jdbc_copied from stdin", new StringReader("x\ty\n"))));
            var left = manager.copyIn("copy jdbc_copied from stdin");
            left.writeToCopy("1\tone\n".getBytes(), 0, 6);
            left.cancelCopy();
            say(one(c, "select count(*) from jdbc_copied"));
        }
    }

    static void listen() throws Exception {
        try (Connection c = connect(); Connection other = connect()) {
            run(c, "listen jdbc_news");
            for (String text : new String[] {"a", "b", "c"}) {
                run(other, "notify jdbc_news, '" + text + "'");
            }
            StringBuilder found = new StringBuilder();
            while (found.length() < 3) {
                for (PGNotification notification : c.unwrap(PGConnection.class).getNotifications(10000)) {
                    found.append(notification.getParameter());
                }
            }
            say(found);
        }
    }

    static void cancel() throws Exception {
        try (Connection c = connect(); Statement s = c.createStatement()) {
            s.setQueryTimeout(1);
            try {
                s.execute("select pg_sleep(30)");
            } catch (SQLTimeoutException e) {
                say("timeout");
            } catch (SQLException e) {
                say(e.getSQLState());
            }
            say(one(c, "select 'alive'"));
            Thread thread = new Thread(() -> {
                try (Connection watcher = connect()) {
                    String asleep = "select count(*) from pg_stat_activity where query like 'select pg_sleep(31)%'"
                            + " and wait_event = 'PgSleep' and datname = current_database()";
                    while (!"1".equals(one(watcher, asleep))) {
                        Thread.onSpinWait();
                    }
                    s.cancel();
                } catch (SQLException e) {
                    throw new IllegalStateException(e);
                }
            });
            s.setQueryTimeout(0);
            thread.start();
            say(stateOf(() -> s.execute("select pg_sleep(31)")));
            thread.join();
            say(one(c, "select 'alive'"));
        }
    }

    static void transactions() throws Exception {
        try (Connection c = connect()) {
            run(c, "drop table if exists jdbc_t; create table jdbc_t (a int primary key)");
            c.setAutoCommit(false);
            c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            run(c, "insert into jdbc_t values (1)");
            Savepoint savepoint = c.setSavepoint();
            say(stateOf(() -> run(c, "insert into jdbc_t values (1)")));
            say(stateOf(() -> run(c, "select 1")));
            c.rollback(savepoint);
            run(c, "insert into jdbc_t values (2)");
            say(one(c, "show transaction_isolation"));
            c.commit();
            run(c, "insert into jdbc_t values (3)");
            c.rollback();
            c.setReadOnly(true);
            say(stateOf(() -> run(c, "insert into jdbc_t values (4)")));
            c.rollback();
            c.setReadOnly(false);
            say(one(c, "select string_agg(a::text, ',' order by a) from jdbc_t"));
        }
    }

    /** The driver notices a plan that no longer fits and prepares again by itself where it may. */
    static void replan() throws Exception {
        try (Connection c = connect("prepareThreshold", "1"); Connection other = connect()) {
            run(c, "drop table if exists replanned; create table replanned as select 1 as a");
            try (PreparedStatement p = c.prepareStatement("select * from replanned")) {
                for (int n = 0; n < 3; n++) {
                    try (ResultSet r = p.executeQuery()) {
                        say(r.getMetaData().getColumnCount());
                    }
                }
                run(other, "alter table replanned add column b int");
                try (ResultSet r = p.executeQuery()) {
                    say(r.getMetaData().getColumnCount());
                }
            }
            run(c, "deallocate all");
            try (PreparedStatement p = c.prepareStatement("select * from replanned"); ResultSet r = p.executeQuery()) {
                say(r.getMetaData().getColumnCount());
            }
        }
    }

    static void metadata() throws Exception {
        try (Connection c = connect("ApplicationName", "matrix", "currentSchema", "pg_catalog")) {
            run(c, "drop table if exists public.described; create table public.described (id int primary key, name varchar(9) not null)");
            try (ResultSet r = c.getMetaData().getColumns(null, "public", "described", "%")) {
                while (r.next()) {
                    say(r.getString("COLUMN_NAME"), r.getString("TYPE_NAME"), r.getInt("COLUMN_SIZE"));
                }
            }
            try (ResultSet r = c.getMetaData().getPrimaryKeys(null, "public", "described")) {
                r.next();
                say(r.getString("PK_NAME"));
            }
            say(one(c, "show application_name"), one(c, "show search_path"), c.getSchema());
        }
    }

    /** Every way the driver can be told to speak: simple, extended, only named, and several statements at once. */
    static void modes() throws Exception {
        for (String mode : new String[] {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"}) {
            try (Connection c = connect("preferQueryMode", mode); Statement s = c.createStatement()) {
                int results = 0;
                s.execute("create temp table several (a int); insert into several values (1), (2); select * from several");
                while (s.getMoreResults() || s.getUpdateCount() != -1) {
                    results++;
                }
                int sum = 0;
                for (int n = 0; n < 8; n++) {
                    try (PreparedStatement p = c.prepareStatement("select ?::int + count(*) from several")) {
                        p.setInt(1, n);
                        try (ResultSet r = p.executeQuery()) {
                            r.next();
                            sum += r.getInt(1);
                        }
                    }
                }
                say(mode, results, sum);
            }
        }
    }

    static void secure() throws Exception {
        try (Connection c = connect()) {
            say(one(c, "select current_user"));
            say(one(c, "select length(repeat('x', 2000000))"));
        }
        say(stateOf(() -> connect("password", "wrong").close()));
        say(stateOf(() -> DriverManager.getConnection(URL.replace("verify-full", "disable"), System.getenv("PGUSER"), System.getenv("PGPASSWORD")).close()));
    }

    public static void main(String[] arguments) throws Exception {
        System.setOut(new java.io.PrintStream(System.out, true, "UTF-8"));
        Checks.class.getDeclaredMethod(arguments[0]).invoke(null);
    }
}
