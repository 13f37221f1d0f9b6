import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.TreeMap;

/** Maps, garbage of several threads, exceptions that are signals first, a child process. Prints checksums. */
public class Heap {
    static long mix(long x) {
        x ^= x >>> 33;
        x *= 0xff51afd7ed558ccdL;
        return x ^ x >>> 33;
    }

    static int deep(int n) {
        return n == 0 ? 0 : 1 + deep(n - 1);
    }

    static long churn(int thread, int count) {
        ArrayList<byte[]> blocks = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            byte[] block = new byte[1024];
            Arrays.fill(block, (byte) (i * thread));
            block[i % 1024]++;
            blocks.add(block);
            if (i % 5 == 0) blocks.set(i / 2, new byte[10]);
        }
        long sum = 0;
        for (byte[] block : blocks) sum = mix(sum + Arrays.hashCode(block));
        return sum;
    }

    public static void main(String[] args) throws Exception {
        int count = Integer.parseInt(args[0]);
        HashMap<Long, String> map = new HashMap<>();
        for (int i = 0; i < count; i++) map.put(mix(i), "value " + i);
        long sum = 0;
        for (int round = 0; round < 3; round++)
            for (int i = 0; i < count; i++) sum = mix(sum + map.get(mix(i)).hashCode());
        System.out.println("map " + map.size() + " " + sum);

        Thread[] threads = new Thread[4];
        long[] sums = new long[4];
        for (int t = 0; t < 4; t++) {
            int thread = t;
            threads[t] = new Thread(() -> sums[thread] = churn(thread, count / 64));
            threads[t].start();
        }
        for (Thread thread : threads) thread.join();
        System.out.println("threads " + Arrays.toString(sums));

        int nulls = 0, divisions = 0, overflows = 0;
        for (int i = 0; i < 1000; i++) {
            try {
                Object object = i % 2 == 0 ? null : "x";
                object.hashCode();
            } catch (NullPointerException e) {
                nulls++;
            }
            try {
                sum += 1 / (i % 10);
            } catch (ArithmeticException e) {
                divisions++;
            }
        }
        for (int i = 0; i < 3; i++) {
            try {
                deep(Integer.MAX_VALUE);
            } catch (StackOverflowError e) {
                overflows++;
            }
        }
        System.out.println("exceptions " + nulls + " " + divisions + " " + overflows);

        TreeMap<String, Integer> tree = new TreeMap<>();
        for (int i = 0; i < count / 8; i++) tree.merge(Long.toHexString(mix(i) % 50000), 1, Integer::sum);
        System.out.println("tree " + tree.size() + " " + tree.hashCode());

        Process child = new ProcessBuilder("echo", "child").start();
        System.out.print(new String(child.getInputStream().readAllBytes()));
        System.out.println(child.waitFor());
    }
}
