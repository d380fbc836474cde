-- Keep a new request while a head is awaited, for a bounded time: HAProxy itself answers 503 at once where none is up.
local function wait_for_head(txn, seconds)
    local deadline = core.now().sec + tonumber(seconds)
    while txn.f:nbsrv("heads") == 0 and txn.f:nbsrv("awaited") > 0 and core.now().sec < deadline do
        core.msleep(200)
    end
end

core.register_action("wait_for_head", { "http-req" }, wait_for_head, 1)
