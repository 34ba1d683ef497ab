---@meta bough.core
-- What C registers, for language servers. Never loaded at run time.
-- "Waits": suspends the calling task, or drives the loop where there is none; may raise `cancelled`,
-- and `timeout` at a deadline. Times are seconds, sizes bytes.
-- luacheck: ignore

---@alias bough.error_kind
---| "invalid" # wrong use: names what was wrong and what is right
---| "not_found" # no such image, tag, path, program
---| "exists"
---| "state" # not possible now: no result yet, no step to go back
---| "busy" # the session is running something
---| "disposed" # the run kept no image
---| "exit" # a command failed under `check`; carries the result
---| "timeout" # a time limit under `check`, or a deadline
---| "cancelled"
---| "closed"
---| "denied"
---| "unsupported" # this engine, or this machine, cannot do that
---| "resource" # memory, disk, descriptors
---| "io"
---| "corrupt"
---| "auth"
---| "api"
---| "transport"
---| "protocol"

---@class bough.error
---@field kind bough.error_kind
---@field message string one line
---@field op string? what was being done; `tostring` puts it in front
---@field errno integer?
---@field code string? "ENOENT"
---@field status integer? HTTP status
---@field sent boolean? of requests: whether some of it may have reached the host
---@field result bough.result? of the command that failed
---@field image bough.image? what that command left
---@field cause any
---@field traceback string? of the task that raised it

---@class bough.result
---@field exit_code integer 128+n after signal n, 137 after a time limit
---@field signal integer?
---@field timed_out boolean
---@field oom boolean killed for want of memory
---@field ok boolean exit code 0
---@field elapsed_time number wall clock
---@field user_time number
---@field system_time number
---@field max_rss integer peak memory
---@field stdout string? nil when it was not captured
---@field stderr string?
---@field truncated { stdout: integer?, stderr: integer? } bytes dropped; empty when nothing was
---@field cached boolean? with `cache = true`: whether this is the result of an earlier run
---@field resources bough.resources

---@class bough.resources the last seven: of live processes of the embedded engine alone
---@field user_time number
---@field system_time number
---@field max_rss integer
---@field minor_faults integer? pages that were in memory
---@field major_faults integer? pages that had to be read
---@field blocks_in integer? of 512 bytes, from a disk
---@field blocks_out integer?
---@field waits integer? how often it left the processor by itself
---@field preemptions integer? and how often it had to
---@field core_dump boolean?

---@class bough.constant

---@class bough.core
---@field PIPE bough.constant
---@field INHERIT bough.constant
---@field STDOUT bough.constant
---@field kinds bough.error_kind[]
local core = {}

--- Makes an error value; an unknown kind raises.
---@param kind bough.error_kind
---@param message string
---@param fields table?
---@return bough.error
function core.error(kind, message, fields) end

---@param value any
---@return boolean
function core.is_error(value) end

--- Starts a task.
---@param fn function
---@return bough.task
function core.spawn(fn, ...) end

--- A task of the library's own: it runs also while somebody waits inside a task where nothing can yield (a comparator,
--- a generator), when other tasks stand still, and can be waited for there. It must call nothing that a user has
--- written, and wait for no ordinary task.
---@param fn function
---@return bough.task
function core.service(fn, ...) end

--- Something that happens, for Lua code to wait on.
---@return bough.condition
function core.condition() end

---@class bough.condition
local condition = {}
--- Waits until it fires; what fired before is not remembered, so look at what you wait for first, and again after.
---@param seconds number?
---@return boolean fired false when the time has passed first
function condition:wait(seconds) end
--- Wakes all who wait now.
function condition:fire() end

--- Watches a descriptor, which stays the caller's.
---@param fd integer
---@return bough.poll
function core.poll(fd) end

---@class bough.poll
local poll = {}
--- Waits until the descriptor can be read or is in error.
---@param seconds number?
---@return boolean ready false when the time has passed first
function poll:wait(seconds) end
--- Twice does nothing. Whoever waits gets `closed`.
function poll:close() end

--- Runs a task and the loop until it is done; returns its results or raises its error. Waits.
---@param fn function
---@return any ...
function core.run(fn, ...) end

--- Waits.
---@param seconds number
function core.sleep(seconds) end

--- Runs `fn`; when the time is over its next wait raises `timeout`. Deadlines nest, the nearer counts.
---@param seconds number
---@param fn function
---@return any ...
function core.deadline(seconds, fn, ...) end

--- Does what is ready and returns; waits at most `seconds` for something, 0 never.
---@param seconds number?
function core.step(seconds) end

--- A descriptor that turns readable when there is something to do.
---@return integer
function core.fd() end

--- How long a host may wait at most before the next step; nil for no bound.
---@return number?
function core.timeout() end

--- The running task.
---@return bough.task?
function core.current() end

--- Called with the errors of tasks that nobody waited for, instead of `warn`.
---@param fn fun(problem: any)?
function core.on_error(fn) end

--- A fair lock for Lua code.
---@return bough.queue
function core.queue() end

---@class bough.queue
local queue = {}
--- Waits for its turn.
function queue:acquire() end
function queue:release() end

---@class bough.task
---@field status "ready"|"waiting"|"running"|"done"|"failed"|"cancelled"
local task = {}
--- The task's results, or its error with its traceback. Waits. Repeatable.
---@return any ...
function task:wait() end
--- Its current or next wait raises `cancelled`; `<close>` variables run.
function task:cancel() end
--- Cancels without waiting. `<close>` cancels and joins.
function task:close() end

---@param text string
---@return string hex 64 digits
function core.sha256(text) end
--- Reads on another thread. Waits.
---@param path string
---@return string hex
---@return integer size
function core.sha256_file(path) end
--- "x86_64", as the kernel says it.
---@return string
function core.machine() end
--- Seconds of a clock that only goes on.
---@return number
function core.now() end
---@param fd integer
---@return boolean
function core.is_terminal(fd) end

---@class bough.stat
---@field name string? in lists
---@field kind "file"|"dir"|"symlink"|"fifo"|"socket"|"other"
---@field size integer
---@field mode integer permission bits
---@field uid integer
---@field gid integer
---@field mtime number
---@field symlink_to string?
---@field ctime number? not in lists: when content or attributes were changed last
---@field version string? not in lists: another one when the content is, but for changes in one tick of the clock

--- The host's files, on other threads. All wait; all but `stat` raise by errno.
---@class bough.fs
core.fs = {}
---@param path string
---@param nofollow boolean?
---@return bough.stat? nil, a message and errno when it cannot be had
---@return string? message
---@return integer? errno
function core.fs.stat(path, nofollow) end
--- Sorted by name; links are not followed.
---@param directory string
---@return bough.stat[]
function core.fs.list(directory) end
---@param path string
---@param max integer? bytes
---@return string
function core.fs.read(path, max) end
--- A new file, mode 0644.
function core.fs.write(path, data) end
---@param path string
---@param mode integer?
function core.fs.mkdir(path, mode) end
--- A new directory, mode 0700, named `prefix` and some characters more.
---@param prefix string
---@return string path
function core.fs.temp_dir(prefix) end
--- A file or a tree; what is not there is fine.
---@param path string
function core.fs.remove(path) end
---@param from string
---@param to string
---@param no_replace boolean?
function core.fs.rename(from, to, no_replace) end

--- Work that goes on whether anybody waits or not.
---@class bough.job
local job = {}
--- The result when it is over, nil when `seconds` have passed first; raises the work's failure. Waits.
--- Repeatable.
---@param seconds number?
---@return any
function job:wait(seconds) end
---@return integer done
---@return integer total 0 while it is not known
function job:progress() end
--- Cancels; does nothing when it is over. Never waits. `<close>` does it too.
function job:close() end

--- Base64 with padding, without line breaks.
---@param bytes string
---@return string
function core.base64_encode(bytes) end
--- nil where the text is broken: digits that are none, white space among them, or wrong padding.
---@param text string
---@return string?
function core.base64_decode(text) end
--- Whether all is printable ASCII, tabs and line ends: bytes 32 to 126, 9, 10 and 13.
---@param bytes string
---@return boolean
function core.is_text(bytes) end
--- A random uuid (version 4), in lower case.
---@return string
function core.uuid() end
--- The time of day: seconds since the epoch, with a fraction.
---@return number
function core.time() end

--- Makes a client for requests over HTTP: it owns the connections. All that waits can be cancelled. No error and no
--- `tostring` holds more of a URL than its host, or anything of headers, credentials and proxies.
---@param opts bough.http_options?
---@return bough.http
function core.http(opts) end

---@class bough.http_options
---@field user_agent string? default "bough"
---@field ca_file string? certificates to trust, in place of the system's; default CURL_CA_BUNDLE or SSL_CERT_FILE of the
---  environment, else the directory SSL_CERT_DIR
---@field verify boolean? false: no certificate is checked
---@field proxy string? a URL, for every host; "" for none; default what http_proxy, https_proxy, all_proxy and no_proxy say,
---  for all but this machine
---@field max_connections integer? at a time; the others wait, first come, first served. Default 0: no bound
---@field outside boolean? a connection to this machine itself, or to a link-local address, is refused (`denied`)
---  whatever name led there; one to a proxy is not

---@class bough.http_request
---@field url string without user name and password
---@field method string? default GET
---@field headers table<string, string>? of these only accept, accept-encoding, accept-language, content-type, expect and
---  range follow a redirect to another host; credentials do not either
---@field body string|{ path: string, offset: integer?, size: integer? }|nil a file is read as it is sent
---@field sink bough.sink? which takes the content of 2xx
---@field resume boolean? asks for what the sink does not hold yet, and starts over where ranges are not known
---@field max_bytes integer? of a content in memory; default 16 MiB
---@field follow integer? redirects; default 10 for GET and HEAD, 0 for others; never from https to http
---@field once boolean? never sent a second time: a reused connection that turns out to be dead is an error (transport).
---  Default false: it is sent again where nothing of an answer had come, whatever its method
---@field http2 boolean? may share a connection, over https. Default: unless there is a stream, a sink or a file. While such
---  a stream is not read, up to 32 MiB more of it are taken into memory
---@field compressed boolean? gzip is asked for, and unpacked as it comes: what the server has flushed can be read at once.
---  Content that breaks off raises `transport` behind what did come. Default false; not for what is resumed
---@field timeout number? for all of it; default none
---@field connect_timeout number? default 30; waiting for one of max_connections does not count
---@field stall_timeout number? without a byte either way; default 30; while nobody reads a stream it does not count
---@field username string? with password
---@field password string?
---@field bearer string?

--- A local file that a request's content, or what is written, goes into, with its digest. Waits until it is open.
---@param path string what is there is lost, unless `resume`
---@param opts { resume: boolean?, max_bytes: integer? }?
---@return bough.sink
function core.sink(path, opts) end

---@class bough.sink
---@field size integer
---@field path string
local sink = {}
--- Waits for room; the bytes are on their way to the file then. Raises `resource` above max_bytes.
---@param data string
---@return bough.sink self
function sink:write(data) end
--- Of all that is in the file. Waits.
---@return string hex
function sink:sha256() end
--- Empty again. Waits.
function sink:reset() end
function sink:close() end

---@class bough.http_answer
---@field status integer
---@field headers table<string, string> names in lower case
---@field url string after redirects
---@field body string? unless it went into a sink

---@class bough.http
local http = {}
--- Waits. Raises `transport`, `timeout`, `protocol`, `resource`, `denied`, `invalid`, `closed`; with `sent`.
---@param request bough.http_request
---@return bough.http_answer
function http:request(request) end
---@param request bough.http_request
---@return bough.job transfer its result an answer
function http:start(request) end
--- Waits for the headers.
---@param request bough.http_request
---@return bough.http_stream
function http:open(request) end
--- Ends what is under way: `closed`. Never waits.
function http:close() end

---@class bough.http_stream content that is not read from the connection faster than somebody takes it
---@field status integer
---@field headers table<string, string>
---@field url string
local http_stream = {}
--- What is there, at most n bytes; nil at the end. Waits while there is nothing. What was cut short raises behind its
--- last byte. Cancelling a read loses nothing.
---@param n integer? default 256 KiB
---@return string?
function http_stream:read(n) end
--- Ends it. Never waits. `<close>` and the collector do it too.
function http_stream:close() end

--- Starts the embedded engine. Waits for its keeper. Raises `denied`, `resource`, `unsupported`, `corrupt`.
---@param opts { home: string?, keeper: string?, spare: integer?, limits: table? }
---@return bough.local
function core.open_local(opts) end

---@class bough.row what engines tell of an image
---@field uuid string? nil when disposable
---@field parent_uuid string?
---@field tag string?
---@field origin "run"|"import"|"files"|"commit"
---@field command string?
---@field created_at number
---@field size integer bytes of its own layer
---@field depth integer?
---@field config string? JSON: what the image says about runs, as bough.image_defaults has it
---@field result bough.result?
---@field partial boolean? of a list: only uuid, tag and created_at are sure to be there, `complete` adds the rest

---@class bough.local the embedded engine as a driver; all methods wait
---@field closed boolean
local driver = {}
---@param ref string uuid or tag
---@return bough.row?
function driver:resolve(ref) end
---@param filter table tag, tag_glob, parent, tagged, since, before, limit, offset, oldest_first, brief; lineage: rows
---  have their parent_uuid
---@return bough.row[]
function driver:list(filter) end
--- Makes partial rows whole. Only of engines that have such.
---@param rows bough.row[]
function driver:complete(rows) end
function driver:tag(uuid, tag) end
function driver:untag(uuid) end
function driver:remove(uuid) end
---@param kind "busybox"|"directory"|"archive"
---@param source string?
---@param opts { tag: string? }
---@return bough.job job its result a row
function driver:import(kind, source, opts) end

--- Has the engine fetch an image from a registry by itself. One that has this can import nothing else, and is not
--- handed layers.
---@param reference string as bough.reference takes it
---@param opts { op: string?, tag: string|false|nil, username: string?, password: string?, timeout: number? } seconds
---@return bough.job job its result a row
function driver:import_reference(reference, opts) end

--- Boots a sandbox that hosts processes. Does not wait: what is wrong is told by its `started` and its processes.
---@param uuid string
---@param spec table hostname, network, limits, timeout, disposable, files (bough.staged); automatic: it ends with its
---  last process, leaving an image unless all of them were given up; tag, command: of that image
---@return bough.sandbox
function driver:boot(uuid, spec) end

---@class bough.sandbox what `boot` gives: the engine's side of an instance
---@field hosts boolean processes may be started
---@field live integer processes that have not ended
---@field stopped boolean
---@field over boolean its image is there, or never will be
---@field closed boolean
---@field timed_out boolean
---@field oom boolean
local sandbox = {}
--- Waits until it is there; raises why it is not.
function sandbox:started() end
--- Does not wait.
---@param spec table of one process, as `options.spec` gives it
---@return bough.child
function sandbox:exec(spec) end
--- Waits for the end (of one that is not automatic: until it is stopped).
---@return bough.row? row of its image, where it left one
function sandbox:wait() end
---@param opts { tag: string?, command: string?, config: string? } config: JSON, in place of the parent's
---@return bough.row
function sandbox:commit(opts) end
--- SIGTERM, and SIGKILL for who is left after that time. Waits until it is sealed.
---@param seconds number
function sandbox:stop(seconds) end
--- Kills, and keeps nothing. Never waits.
function sandbox:close() end

---@class bough.child what `exec` gives: the engine's side of a process
---@field over boolean `wait` would not wait
---@field ended boolean
---@field terminal boolean it has one
---@field pid integer? as the sandbox numbers it; nil before it runs
local child = {}
--- Waits until it runs; raises why it does not.
function child:started() end
--- Its result; nil when the time passed first. Calls functions given for its streams meanwhile. Waits. Repeatable.
---@param seconds number?
---@return bough.result?
function child:wait(seconds) end
--- What the caller reads and writes; once, after `started` where it has a terminal.
---@return bough.writer? stdin
---@return bough.reader? stdout
---@return bough.reader? stderr
function child:streams() end
---@param number integer
---@param scope "group"|"tree"
function child:signal(number, scope) end
---@param rows integer
---@param cols integer
function child:resize(rows, cols) end
--- Kills all it started. Never waits.
function child:close() end

--- A stream that comes. Nothing is read ahead of need, so a slow reader slows the command. A read that is cancelled or
--- runs into a deadline has lost nothing. `<close>` and the collector close it.
---@class bough.reader
---@field fd integer? 1 or 2, as the process numbers it
---@field closed boolean
local reader = {}
--- Reads with Lua's formats: "l" (default), "L", "n", "a", a number of bytes; and "c", whatever is there, at least one
--- byte and at most 1 MiB. Several give several values; nil for the first that there is nothing for. Waits. Raises
--- `invalid` for a format, `closed` after `close` or when another process has got the stream, `resource` and `io`.
---@param ... string|integer
---@return any ...
function reader:read(...) end
--- An iterator over what `read` with these formats gives, until nil. Its steps wait, and raise.
---@param ... string|integer default "l"
---@return fun(): any ...
function reader:lines(...) end
--- The command gets SIGPIPE if it writes more. Whoever waits in a read gets `closed`. Twice does nothing.
function reader:close() end

--- A stream that goes. `<close>` and the collector close it.
---@class bough.writer
---@field written integer bytes, ever: taken by the kernel or in the queue (of at most 64 KiB)
---@field closed boolean
local writer = {}
--- Writes strings and numbers; waits for room. Two tasks never mix within one call. Raises `closed` after `close` and when
--- nobody reads any more, `invalid` for other values. A call that is cut short tells in `written` how far it came.
---@param ... string|number
---@return bough.writer self
function writer:write(...) end
--- Waits until the kernel has all.
---@return bough.writer self
function writer:flush() end
writer.drain = writer.flush
--- Ends the stream, after what is queued. On a terminal: what Ctrl-D means there. Never waits. Twice does nothing.
function writer:close() end
writer.write_eof = writer.close

--- A kernel pipe. Both ends can be given to commands as their streams.
---@param name string? for messages
---@return bough.reader
---@return bough.writer
function core.pipe(name) end

--- A plain command of the host. Does not wait.
---@param spec table
---@return bough.child
function core.host_exec(spec) end

--- A live process that runs elsewhere, as its two sides: for engines whose processes are no children of this machine.
--- Does not wait. stdin, stdout, stderr, text and truncate_output_at of the spec mean what they do for any process; all
--- bytes pass through kernel pipes. Raises what is wrong with the streams, and `unsupported` for `pty`.
---@param spec table as `options.spec` gives it
---@return bough.child child the caller's
---@return bough.peer peer the engine's; neither keeps the other alive
function core.child(spec) end

--- Whoever runs the command for a `core.child`. One that goes (`<close>`, the collector) without having told of the end
--- has lost the process: the child fails with `closed`. Services hold it in a `<close>` variable.
---@class bough.peer
---@field stdin bough.reader? what the command is to read; nil: nothing. The same each time, as are the others
---@field stdout bough.writer? where its output goes; nil: nobody wants it
---@field stderr bough.writer? the same object as stdout where they are joined
---@field kept_stdout boolean the caller reads it himself: it may go on after `finish`, until the peer closes it; only
---  then is the process over for its caller, as a command's output is in the pipe when it has ended
---@field kept_stderr boolean
---@field given_up boolean nobody wants what the command does: it is to be killed, and `finish` told
---@field over boolean after `finish` or `fail`
local peer = {}
--- The command runs. Twice does nothing.
---@param pid integer?
function peer:started(pid) end
--- The command is over. Never waits: what is not kept must have been flushed before, else this raises `state` (not when
--- it was given up) and may be called again. Closes stdin and what is not kept. After an end it does nothing.
---@param result { exit_code: integer?, signal: integer?, timed_out: boolean?, oom: boolean?, elapsed_time: number?,
---  user_time: number?, system_time: number?, max_rss: integer?, stdout_dropped: integer?, stderr_dropped: integer? }
---  exit_code: needed unless there is a signal or timed_out; dropped: bytes that have not even come here
function peer:finish(result) end
--- It could not be started or was lost: `started` (before `peer:started`) and `wait` of the child raise this very value.
--- Closes all streams, after what is queued. After an end it does nothing.
---@param problem bough.error whatever else becomes the `cause` of one of kind `api`
function peer:fail(problem) end
--- There is more of this stream, and it does not come here: the caller who reads it himself gets the error after what
--- was written so far, in place of its end. False where he does not read it, or another process does: then the error
--- belongs to the process. Never waits: flush before, else this raises `state`. Closes the peer's end.
---@param stream "stdout"|"stderr"
---@param problem bough.error its kind and message are told
---@return boolean told
function peer:cut(stream, problem) end
--- What is wished next. Nothing when `seconds` have passed first, and after the end. A signal that was not taken yet does
--- not come twice; "close", that the child was given up, comes once, and nothing after it. Waits.
---@param seconds number?
---@return "signal"|"close"|nil wish
---@return integer? number of the signal
---@return "group"|"tree"|nil scope
function peer:next(seconds) end
--- Lets go: without an end told, the process is lost. Never waits. Twice does nothing.
function peer:close() end

---@class bough.process_handle what an engine gives for a live process: userdata, or a Lua table with these methods
---@field over boolean it has ended: `wait(0)` gives the result, or raises, without waiting
---@field pid integer? as its sandbox numbers it
---@field wait fun(self, seconds: number?): bough.result? the result; nil when `seconds` passed first. Waits; several may
---  wait at once; raises a failure to start or a loss, the same each time
---@field signal fun(self, number: integer, scope: "group"|"tree") one to a process that is over is no mistake
---@field resize fun(self, rows: integer, cols: integer) raises `state` or `unsupported` without a terminal
---@field close fun(self) gives up: kills the tree. Never waits

---@class bough.process_fields
---@field stdin bough.writer?
---@field stdout bough.reader?
---@field stderr bough.reader?
---@field command string in one line
---@field op string? "popen", "exec": in front of what `check` raises; default "process"
---@field check boolean? a failing end is an error of `wait` and `communicate`
---@field timeout number? the seconds that the process was given, for messages
---@field settle (fun(): any)? called once after the end, by the first of wait, communicate, close. May wait. Called again
---  by the next when that wait was cancelled or hit a deadline; what else it raises, each of them raises. Its result is `image`

--- Makes a process of an engine's handle.
---@param handle bough.process_handle
---@param fields bough.process_fields
---@return bough.process
function core.process(handle, fields) end

--- A live or finished command. `<close>` kills all that it started if it is alive and waits until it is over; it raises
--- nothing that the process did. The collector kills it too, without waiting.
---@class bough.process
---@field stdin bough.writer? with `stdin = bough.PIPE`, or a terminal
---@field stdout bough.reader? nil when it goes elsewhere
---@field stderr bough.reader? nil when it goes elsewhere, and with a terminal
---@field pid integer? as its sandbox numbers it
---@field command string in one line
---@field returncode integer? nil before the end; 128+n after signal n, 137 after its time limit
---@field signal integer? that ended it
---@field timed_out boolean? nil before the end
---@field ok boolean? exit code 0; nil before the end
---@field result bough.result a fresh copy, with what `communicate` collected; raises `state` before the end
---@field resources { user_time: number, system_time: number, max_rss: integer, elapsed_time: number }? nil before the end; seconds, bytes
---@field image any what the process left, once `wait`, `communicate` or `close` has returned; nil before, and where it leaves none
local process = {}
--- The code, or nil while it runs. Never waits. Raises only what made the process fail to run.
---@return integer? code
function process:poll() end
--- Waits until it runs; raises why it does not. `popen` and `exec` have done so already.
function process:started() end
--- Waits for the end and, of the last process of a session, until the session has moved. Repeatable; several tasks may
--- wait. Meanwhile output that nobody reads is put aside, to be read after. Raises `timeout` when `timeout` passed first
--- (the process goes on); with `check`, `exit` (or `timeout`, stopped at its own time limit) with result, command and
--- image; what made the process fail to run. Being cancelled does nothing to the process.
---@param timeout number? seconds; 0 looks
---@return integer code
function process:wait(timeout) end
--- Sends `input`, closes stdin, and reads both streams until the process has ended; children in the background that
--- hold its streams are not waited for. Waits. Sizes do not matter, nor whether the command reads its input. Raises as
--- `wait` does, with `check` both outputs in `error.result`. After a `timeout` nothing is lost: the next call goes on,
--- without the input or with the same; with another it raises `state`. `busy` while another task does this; `invalid`
--- for input without stdin = bough.PIPE; `closed` when stdin is. Repeatable: the same outputs again.
---@param input string? nil closes stdin at once
---@param timeout number? seconds
---@return string? stdout what was not read before; nil when it is no pipe and was not captured
---@return string? stderr
function process:communicate(input, timeout) end
--- Sends a signal to the process and its group. On a finished process does nothing. `invalid` for an unknown one, with
--- the nearest name.
---@param signal string|integer? "TERM", "sigterm", "RTMIN+1", 15; default "KILL"
---@return true
function process:kill(signal) end
--- kill "TERM".
---@return true
function process:terminate() end
---@param signal string|integer
---@return true
function process:send_signal(signal) end
--- Tells its terminal the size. `invalid` outside of 1 to 65535; `state` or `unsupported` without a terminal.
---@param rows integer
---@param cols integer
---@return true
function process:resize(rows, cols) end
--- Hands the caller's terminal over until the process ends. Waits.
---@param opts table?
---@return integer? code nil after the detach keys
function process:attach(opts) end
--- Closes our ends of its streams, waits for the end, and returns what io.popen's close does; `check` does not count.
--- Repeatable. Raises what made the process fail to run, or the session fail to move.
---@return true? ok nil when it failed
---@return "exit"|"signal" how
---@return integer number exit code or signal
function process:close() end

--- The object around an engine's sandbox.
---@param handle bough.sandbox|table
---@param methods table functions of the instance
---@param fields table what can be read
---@return bough.instance
function core.instance(handle, methods, fields) end

---@class bough.item what is to be put in place
---@field path string absolute
---@field kind "file"|"dir"|"symlink"
---@field mode integer? permission bits; -1: the local file's
---@field uid integer
---@field gid integer
---@field mtime number? default: the local file's, or now
---@field source string? local path
---@field content string?
---@field digest string? of an upload
---@field target string? of a symbolic link

--- Reads what is to go in, and keeps what is new.
---@param items bough.item[]
---@return bough.job job its result a bough.staged
function driver:stage(items) end
---@param uuid string
---@param staged bough.staged
---@param opts { tag: string?, command: string? }
---@return bough.job job its result a row
function driver:put_files(uuid, staged, opts) end
---@param key string
---@return bough.row? row of an earlier run that went well
function driver:cached(key) end
---@param item bough.item without a path
---@return bough.job job its result { sha256, size, new }
function driver:upload(item) end
---@return boolean
function driver:has_file(sha256) end
---@return bough.blob_stream
function driver:open(uuid, path) end
--- A regular file to a local path where nothing is.
---@return bough.job job its result { bytes }
function driver:save(uuid, path, destination) end
--- Iterates over a tar archive of a file or a tree. Waits for its beginning. Where it is missing, `look` with "pack"
--- makes archives.
---@return fun(): string?
function driver:archive(uuid, path) end
--- A tree into an empty local directory.
---@return bough.job job its result { bytes, files, skipped }
function driver:extract(uuid, path, directory) end
--- Looks through a tree, as bough-look does with these arguments.
---@param uuid string
---@param args string[] "list", "grep", "diff" or "pack" and options
---@param opts { other: string? }? for diff: the other image
---@return bough.look
function driver:look(uuid, args, opts) end
--- Merges what is due of an image's layers.
---@return bough.job job its result { merged }
function driver:compact(uuid) end
--- Returns when the command has been started.
---@param uuid string
---@param spec table from bough.options
---@return bough.run
function driver:start(uuid, spec) end
---@return string
function driver:read(uuid, path) end
---@return table[]
function driver:list_dir(uuid, path) end
---@return table
function driver:info() end
---@param keep string[] uuids
---@param dry boolean
---@return { images: integer, layers: integer, bytes: integer }
function driver:gc(keep, dry) end
function driver:close() end

---@class bough.staged
---@field digest string of all that was staged
---@field count integer
---@field copied_files integer what was new
---@field copied_bytes integer
local staged = {}
--- Whoever uses it holds on to it by themselves.
function staged:close() end

---@class bough.blob_stream
---@field size integer
local blob_stream = {}
--- What is there, at most `n` bytes; nil at the end. Waits.
---@param n integer? default 256 KiB
---@return string?
function blob_stream:read(n) end
function blob_stream:close() end

---@class bough.look
local look = {}
--- The next records (of "pack": pieces of the archive), nil behind the last. Waits. Raises what stopped it.
---@return (table|string)[]?
function look:next() end
--- Three counts, after the end.
---@return integer
---@return integer
---@return integer
function look:numbers() end
function look:close() end

---@class bough.run
---@field running boolean
---@field pid integer?
local run = {}
--- Waits. Repeatable.
---@return bough.row
function run:wait() end
--- Kills. Does not wait; twice does nothing.
function run:close() end

--- Makes a session. `defaults` come checked from bough.options.
---@param engine bough.engine
---@param image bough.image
---@param defaults table
---@return bough.session
function core.session(engine, image, defaults) end

---@class bough.step one step of a session, the first being where it began
---@field image bough.image
---@field uuid string
---@field op "session"|"run"|"apply_files"|"checkout"
---@field command string? of a run
---@field exit_code integer? of a run
---@field at number seconds since the epoch

--- A pointer that moves along images. What fails, is cancelled, hits its time limit or is disposable leaves
--- it where it was; a command's non-zero exit is a result and moves it. Result fields mirror the latest run.
---@class bough.session
---@field uuid string of the image where it stands
---@field tag string?
---@field parent_uuid string?
---@field created_at number
---@field state "pulled"|"executing"|"succeeded"|"failed"|"closed"
---@field result bough.result raises `state` before there is one, as do the others
---@field exit_code integer
---@field signal integer?
---@field timed_out boolean
---@field ok boolean
---@field stdout string?
---@field stderr string?
---@field stdin any the configured source
---@field elapsed_time number
---@field engine bough.engine
local session = {}

--- Runs a command and moves to the image that it left. Waits. Raises `busy` while another run is under way,
--- unless `queue = true` lines it up.
---@param command string|table
---@param opts table? with a shell line
---@return bough.image
function session:run(command, opts) end
--- Begins a run; its `wait` moves the session, which is busy until then.
---@param command string|table
---@param opts table?
---@return bough.image
function session:start(command, opts) end
--- Waits for what run or start began last. Repeatable.
---@return bough.image
function session:wait() end
--- Puts files in place, as image:apply_files does, and moves to the image that has them. Waits.
---@return bough.image
function session:apply_files(...) end
--- Tags the image where it stands, nil untags. Waits.
---@param tag string?
---@return bough.session self
function session:tag_as(tag) end
---@return bough.session self
function session:untag() end
--- The steps so far, oldest first; a fresh table.
---@return bough.step[]
function session:history() end
--- Goes back, as if the last `n` steps had not been. Raises `state` beyond the beginning.
---@param n integer? default 1
---@return bough.session self
function session:rollback(n) end
--- Goes to an image, as a step. Waits. Raises `not_found`.
---@param ref string|bough.image
---@return bough.session self
function session:checkout(ref) end
--- A second session at the same point, with the same past and defaults.
---@return bough.session
function session:branch() end
--- The image where it stands.
---@return bough.image
function session:image() end
---@param path string
---@return string
function session:read(path) end
---@param path string?
---@return bough.entry[]
function session:ls(path) end
---@param path string?
---@return fun(): bough.entry?
function session:entries(path) end
---@param path string?
---@return fun(): bough.entry?
function session:walk(path) end
---@param path string
---@return fun(): string?
function session:stream(path) end
---@param path string?
---@return fun(): string?
function session:archive(path) end
---@param source string
---@param destination string?
---@param opts { on_progress: function? }?
---@return string path
function session:download(source, destination, opts) end
---@param path string
---@return bough.entry
function session:stat(path) end
---@param opts bough.find_options?
---@return bough.entry[]
function session:find(opts) end
---@param pattern string
---@return string[]
function session:glob(pattern) end
---@param pattern string|string[]
---@param opts bough.grep_options?
---@return { matches: bough.match[], truncated: boolean, files: integer }
function session:grep(pattern, opts) end
---@return bough.image?
function session:parent() end
---@return bough.image[]
function session:children() end
---@param other bough.image|bough.session|string
---@return bough.diff
function session:diff(other) end
---@param path string
---@param opts table?
---@return string path
function session:export(path, opts) end
--- Starts a live process in the session's sandbox, which is booted for the first one; all share it, and when the last
--- has ended the session moves to the image that it left. Until then the session is busy for everything else that moves
--- it. Waits until the process runs. Options: as `run`, but stdout and stderr are pipes unless you say otherwise.
---@param command string|table
---@param opts table? with a shell line
---@return bough.process
function session:popen(command, opts) end
--- A command that has not been started, for pipelines.
---@param command string|table
---@param opts table? with a shell line
---@return bough.command
function session:cmd(command, opts) end
--- A shell in the caller's terminal, until it ends. Waits.
---@param line string|table|nil a shell line that runs instead, or the options of `popen`, whose array part runs
---  instead; `detach`: as for `attach`
---@param opts table? with a shell line
---@return integer? code nil when `detach`'s keys were typed
function session:shell(line, opts) end
--- A sandbox of its own that hosts processes, at the image where the session stands. Waits until it is there.
---@param opts table?
---@return bough.instance
function session:boot(opts) end
--- Ends it and kills what runs in it. Twice does nothing.
function session:close() end

return core
