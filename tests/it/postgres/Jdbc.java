// PostgreSQL's driver for Java against a running server: Jdbc.java URL rows QUERY prints rows as lines of JSON, URL catalog and URL
// queries fail with a reason.

import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;

public class Jdbc {
    public static void main(String[] args) throws Exception {
        try (Connection connection = DriverManager.getConnection(args[0])) {
            switch (args[1]) {
                case "rows" -> rows(connection, args[2]);
                case "catalog" -> catalog(connection);
                default -> queries(connection);
            }
        }
    }

    /// Seven rows at a time, and the second time as the server has prepared them, in binary.
    private static void rows(Connection connection, String query) throws SQLException {
        connection.setAutoCommit(false);
        List<String> first = null;
        try (PreparedStatement statement = connection.prepareStatement(query)) {
            statement.setFetchSize(7);
            for (int time = 0; time < 7; time++) {
                List<String> lines = new ArrayList<>();
                try (ResultSet rows = statement.executeQuery()) {
                    while (rows.next()) {
                        lines.add(json(rows));
                    }
                }
                // In no order.
                Collections.sort(lines);
                for (int row = 0; first != null && row < first.size(); row++) {
                    check(row < lines.size() && first.get(row).equals(lines.get(row)), "time " + time + ", row " + row + ": "
                        + first.get(row) + " and " + (row < lines.size() ? lines.get(row) : "none"));
                }
                first = lines;
            }
        }
        connection.commit();
        first.forEach(System.out::println);
    }

    private static String json(ResultSet rows) throws SQLException {
        ResultSetMetaData columns = rows.getMetaData();
        List<String> members = new ArrayList<>();
        for (int column = 1; column <= columns.getColumnCount(); column++) {
            members.add(quoted(columns.getColumnName(column)) + ":" + value(rows, column, columns.getColumnType(column)));
        }
        return "{" + String.join(",", members) + "}";
    }

    private static String value(ResultSet rows, int column, int type) throws SQLException {
        if (rows.getObject(column) == null) {
            return "null";
        }
        return switch (type) {
            case Types.NUMERIC -> quoted(rows.getBigDecimal(column).toPlainString());
            case Types.BIGINT, Types.INTEGER, Types.SMALLINT -> Long.toString(rows.getLong(column));
            case Types.BIT, Types.BOOLEAN -> Boolean.toString(rows.getBoolean(column));
            // A timestamptz.
            case Types.TIMESTAMP, Types.TIMESTAMP_WITH_TIMEZONE ->
                quoted(rows.getObject(column, OffsetDateTime.class).toInstant().toString());
            case Types.VARCHAR -> quoted(rows.getString(column));
            default -> throw new IllegalStateException("a column of type " + type);
        };
    }

    private static String quoted(String text) {
        StringBuilder json = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            json.append(c < ' ' || c == '"' || c == '\\' ? String.format("\\u%04x", (int) c) : String.valueOf(c));
        }
        return json.append('"').toString();
    }

    private static void catalog(Connection connection) throws SQLException {
        DatabaseMetaData data = connection.getMetaData();
        Set<String> tables = all(data.getTables(null, "public", "%", new String[] {"TABLE"}), "TABLE_NAME");
        check(tables.containsAll(List.of("events", "sessions", "messages")) && !tables.contains("users"), "tables " + tables);
        Set<String> views = all(data.getTables(null, null, "%", new String[] {"VIEW"}), "TABLE_NAME");
        check(views.contains("usage_daily") && !views.contains("sessions"), "views " + views);
        check(all(data.getSchemas(), "TABLE_SCHEM").contains("public"), "schemas");
        check(all(data.getCatalogs(), "TABLE_CAT").contains("counterbat"), "databases");
        check(data.getMaxColumnNameLength() == 63 && data.getSQLKeywords() != null, "what the server can do");
        List<String> columns = new ArrayList<>();
        try (ResultSet rows = data.getColumns(null, "public", "sessions", "%")) {
            while (rows.next()) {
                String name = rows.getString("COLUMN_NAME");
                columns.add(name + " " + rows.getString("TYPE_NAME") + " " + rows.getString("IS_NULLABLE"));
            }
        }
        for (String column : List.of("session_id text NO", "opened_at timestamptz NO", "opened_by_token numeric NO",
                "first_response_ms int8 YES", "inbound int4 NO", "cost numeric YES")) {
            check(columns.contains(column), column + " of " + columns);
        }
        for (ResultSet rows : List.of(data.getPrimaryKeys(null, "public", "sessions"), data.getTypeInfo(),
                data.getIndexInfo(null, "public", "sessions", false, true), data.getTableTypes(),
                data.getImportedKeys(null, "public", "sessions"), data.getExportedKeys(null, "public", "sessions"),
                data.getCrossReference(null, "public", "sessions", null, "public", "messages"),
                data.getTablePrivileges(null, "public", "sessions"), data.getColumnPrivileges(null, "public", "sessions", "%"),
                data.getBestRowIdentifier(null, "public", "sessions", DatabaseMetaData.bestRowSession, true),
                data.getVersionColumns(null, "public", "sessions"), data.getFunctions(null, null, "%"),
                data.getUDTs(null, null, "%", null), data.getClientInfoProperties())) {
            count(rows);
            rows.close();
        }
    }

    private static Set<String> all(ResultSet rows, String column) throws SQLException {
        Set<String> values = new TreeSet<>();
        while (rows.next()) {
            values.add(rows.getString(column));
        }
        rows.close();
        return values;
    }

    private static void queries(Connection connection) throws SQLException {
        for (int time = 0; time < 7; time++) {
            equal(connection, 42L, "select count(*) from sessions where inbound >= ?", 0);
            equal(connection, 0L, "select count(*) from sessions where inbound > ?", new BigDecimal("1000000.5"));
            equal(connection, 42L, "select count(*) from sessions where opened_at > ?",
                OffsetDateTime.of(2020, 1, 1, 0, 0, 0, 0, ZoneOffset.UTC));
            equal(connection, 0L, "select count(*) from sessions where account = ?", "nobody");
            // The largest token, which no long is.
            BigDecimal largest = new BigDecimal("18446744073709551615");
            equal(connection, largest, "select -1::bigint as message_token where ? is not null", "x");
            equal(connection, 0L, "select count(*) from messages where message_token = ?", largest);
            equal(connection, new BigDecimal("-0.014000"), "select cast(? as decimal(18, 6))", new BigDecimal("-0.014"));
            equal(connection, true, "select cast(? as boolean)", true);
            equal(connection, null, "select cast(? as bigint)", (Object) null);
        }
        try (Statement statement = connection.createStatement()) {
            statement.setMaxRows(5);
            statement.setQueryTimeout(60);
            check(count(statement.executeQuery("select * from sessions")) == 5, "the first rows");
        }
        refuses(connection, "select * from nothing", "42P01");
        refuses(connection, "select nothing from sessions", "42703");
        refuses(connection, "delete from sessions", "25006");
        connection.setReadOnly(true);
        connection.setAutoCommit(false);
        equal(connection, 1L, "select cast(? as bigint)", 1L);
        connection.rollback();
        check(connection.isValid(10), "the connection");
    }

    private static void equal(Connection connection, Object wanted, String query, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(query)) {
            for (int value = 0; value < values.length; value++) {
                statement.setObject(value + 1, values[value]);
            }
            try (ResultSet rows = statement.executeQuery()) {
                check(rows.next(), query + " has no row");
                Object found = rows.getObject(1);
                check(wanted == null ? found == null : wanted.equals(found), query + Arrays.toString(values) + " is " + found);
            }
        }
    }

    private static void refuses(Connection connection, String query, String state) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(query);
            check(false, query + " is answered");
        } catch (SQLException refused) {
            check(state.equals(refused.getSQLState()), query + ": " + refused.getSQLState() + " " + refused.getMessage());
        }
    }

    private static int count(ResultSet rows) throws SQLException {
        int count = 0;
        while (rows.next()) {
            count++;
        }
        return count;
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new IllegalStateException(what);
        }
    }
}
